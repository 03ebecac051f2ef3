# What `cmake --install` puts where: program, library with its package, manual, completions.
include(CMakePackageConfigHelpers)

install(TARGETS ingot_cli RUNTIME)
set_target_properties(ingot_strict PROPERTIES EXPORT_NAME strict)
install(TARGETS ingot ingot_strict EXPORT ingot ARCHIVE LIBRARY FILE_SET HEADERS)
install(EXPORT ingot NAMESPACE ingot:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/ingot
        FILE ingotTargets.cmake)
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/ingotConfig.cmake.in
  ${PROJECT_BINARY_DIR}/package/ingotConfig.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/ingot)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/package/ingotConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/package/ingotConfig.cmake
              ${PROJECT_BINARY_DIR}/package/ingotConfigVersion.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/ingot)
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})

# The program writes its own manual and completions; a cross build has none it could run.
if(NOT CMAKE_CROSSCOMPILING)
  set(pages ${PROJECT_BINARY_DIR}/pages)
  set(commands)
  foreach(pair "manual=ingot.1" "completion bash=ingot.bash" "completion zsh=_ingot"
               "completion fish=ingot.fish")
    string(REGEX MATCH "^(.*)=(.*)$" unused ${pair})
    set(file ${CMAKE_MATCH_2})
    separate_arguments(words UNIX_COMMAND ${CMAKE_MATCH_1})
    list(APPEND commands COMMAND ingot_cli ${words} > ${pages}/${file})
  endforeach()
  add_custom_command(OUTPUT ${pages}/ingot.1 ${pages}/ingot.bash ${pages}/_ingot ${pages}/ingot.fish
    COMMAND ${CMAKE_COMMAND} -E make_directory ${pages} ${commands} DEPENDS ingot_cli VERBATIM
    COMMENT "Writing the manual and the completions")
  add_custom_target(ingot_pages ALL DEPENDS ${pages}/ingot.1)
  # Also where only the program was built, and not the target ingot_pages.
  install(CODE "set(pages \"${pages}\")\nset(program \"$<TARGET_FILE:ingot_cli>\")")
  install(CODE [[
    file(MAKE_DIRECTORY ${pages})
    foreach(pair "manual=ingot.1" "completion bash=ingot.bash" "completion zsh=_ingot"
                 "completion fish=ingot.fish")
      string(REGEX MATCH "^(.*)=(.*)$" unused ${pair})
      set(file ${pages}/${CMAKE_MATCH_2})
      separate_arguments(words UNIX_COMMAND ${CMAKE_MATCH_1})
      if(NOT EXISTS ${file})
        execute_process(COMMAND ${program} ${words} OUTPUT_FILE ${file} COMMAND_ERROR_IS_FATAL ANY)
      endif()
    endforeach()]])
  install(FILES ${pages}/ingot.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
  install(FILES ${pages}/ingot.bash RENAME ingot
          DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions)
  install(FILES ${pages}/_ingot DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions)
  install(FILES ${pages}/ingot.fish DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d)
endif()
